"""The central claims of papers in small worlds whose answers are known, one file each."""
