"""The fault kit: what breaks things on purpose, and what tells whether the promises held; itself tested."""
