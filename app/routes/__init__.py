"""The routes: each reads, calls and answers; the work is elsewhere."""
