"""what was measured -> pages and tables that people read."""
