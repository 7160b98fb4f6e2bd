"""What commands show to people: the report of the demo, figures of response maps and class maps."""
