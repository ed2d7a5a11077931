"""What is measured about Unfog: speed, quality and how both compare with other libraries."""
