"""What travels and what it means. Pure: no event loop, no sockets, no clock."""
