"""words typed -> core calls -> words shown."""
