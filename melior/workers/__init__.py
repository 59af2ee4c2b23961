"""Work on files of groups, dealt out in chunks to processes here or on a cluster."""
