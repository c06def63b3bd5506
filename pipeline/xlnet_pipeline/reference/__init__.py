"""Documentation that is generated from the code: commands, machines, recipe fields."""
