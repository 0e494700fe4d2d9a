"""Commands of an operator: provision, server, node, status, doctor."""
