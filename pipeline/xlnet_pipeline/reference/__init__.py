"""The documentation that is generated from code: commands, machines, recipe fields."""
