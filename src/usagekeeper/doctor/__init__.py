"""What is wrong with an installation, found without changing it: numbered findings, each with the line to change."""
