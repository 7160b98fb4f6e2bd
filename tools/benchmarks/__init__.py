"""Speed and memory, measured side by side by tools/benchmark.py."""

# {section: module} of a function measure_SECTION(settings, records) → rows of a table, whose docstring is its title
SECTIONS = {
    "shortlist": "shortlist", "evaluation": "coco_evaluation", "lvis": "lvis_evaluation", "detection": "networks",
    "dense": "networks", "mosaics": "mosaics", "decode": "reading", "records": "reading", "shards": "shards",
    "startup": "startup", "steps": "steps", "memory": "steps", "text": "steps", "waits": "waits", "sides": "sides",
}  # fmt: skip
