"""The long measurements: a queue of jobs that can be stopped and continued, their records, and what is made of them."""
