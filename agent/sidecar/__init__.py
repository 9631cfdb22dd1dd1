"""The agent: what runs beside the database. `app` wires it; the rules are in `policy`, the work is in `runner`."""
