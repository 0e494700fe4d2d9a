"""What an attack proves: intervals and lower bounds on epsilon."""
