"""The claims of the papers in miniature: trained, measured and judged on one machine."""
