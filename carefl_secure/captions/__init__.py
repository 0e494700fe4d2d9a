"""What a larger model says about an image: made on the client, kept there, and put to the test."""
