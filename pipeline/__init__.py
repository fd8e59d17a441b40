"""What a record is, where it lives, how it is made and measured; imports no job, no connector."""
