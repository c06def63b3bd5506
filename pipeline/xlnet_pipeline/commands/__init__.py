"""The commands of xlnet-pipeline, a module each: ``add(subparsers)`` declares one, and its handler runs it."""
