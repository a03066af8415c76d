"""`safelight audit-labels`: which labels are probably wrong."""
