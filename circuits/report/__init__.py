"""One report object, rendered as an offline page, JSON or Markdown."""
