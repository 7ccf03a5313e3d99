"""Views of the dashboard, one file each; the file stem is the id of the view and its path in the address."""
