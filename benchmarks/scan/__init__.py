"""What scanning costs and finds, beside other projects' scanners."""
