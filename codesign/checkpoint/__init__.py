"""What is really stored: which scheme every layer of a checkpoint has, from headers and configs alone."""
