"""The commands of xlnet-pipeline, one module each: ``add(subparsers)`` declares a command, and its handler runs it."""
