"""`python -m benchmarks`: every figure, one after the other. Prints, asserts nothing."""

from __future__ import annotations

import asyncio

from benchmarks import entering, fleet, idle, trust, walk


async def main() -> None:
    """Run each benchmark."""
    await idle.main()
    await walk.main()
    await trust.main()
    await entering.main()
    await fleet.main()


if __name__ == "__main__":
    asyncio.run(main())
