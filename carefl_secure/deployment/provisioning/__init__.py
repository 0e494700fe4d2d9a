"""Keys, certificates, bundles and policies of sites."""
