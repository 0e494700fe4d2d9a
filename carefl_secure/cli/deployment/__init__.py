"""Commands of an operator: site, submitter, provision, server, node, status, doctor."""
