"""The agent: what runs beside the database. `app` wires it; `admission` and `policy` judge, `runner` does the work."""
