"""Commands of the lab: entry points of the group `ibidem.commands`."""
