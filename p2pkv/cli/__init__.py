"""The command line: what people start nodes with and look into them by."""
