"""From a request to a validated directory: the loop over sources, what is known of the bytes, the env file."""
