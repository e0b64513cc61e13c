"""What quantkit does, as functions: what the command line and a program of yours both call."""
