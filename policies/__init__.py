"""Agents: policies that act in an environment by planning in its world model or by learning in it."""
