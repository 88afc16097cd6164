"""What can be told of an installation from outside, for the command line and the doctor; it serves no requests."""
