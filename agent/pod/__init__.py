"""The pod around the agent: who it is, which containers and ports it has, and how a command starts in it."""
