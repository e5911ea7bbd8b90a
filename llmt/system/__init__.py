"""machine -> what it can do -> what will be done on it, and why."""
