"""The commands: their flags, their recipes, and how they fail. The only room that knows of flags, exit codes and terminals."""
