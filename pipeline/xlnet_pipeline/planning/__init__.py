"""Before anything is spent: what a run would take (time, memory, money), and what would stop it."""
