"""What every route shares: errors, keys, multipart forms, responses, metrics."""
