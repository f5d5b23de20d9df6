"""Who proposes the next policy."""
