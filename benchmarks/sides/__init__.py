"""What is compared: a module for ours and one for each peer, imported in processes of their own."""
