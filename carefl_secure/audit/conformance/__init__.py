"""Statistical tests that the mechanism of a build is the mechanism of its plan."""
