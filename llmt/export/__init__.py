"""weights -> other people's formats."""
