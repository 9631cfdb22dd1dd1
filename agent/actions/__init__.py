"""What a hook does, one file an action. Each takes values and comes back with a `Result`; none knows the journal."""
