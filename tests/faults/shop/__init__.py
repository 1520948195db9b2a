"""What the project of ``several_hosts`` has beside the test app. Its second release has more than its first."""
