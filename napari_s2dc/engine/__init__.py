"""What a user does, as functions without a screen."""
