"""text -> token ids."""
