"""The commands of `bitnet`, one a file, imported when they are called."""
