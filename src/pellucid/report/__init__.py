"""An audit, told to a person: the page (`html`), its figures and images, and a table for terminals (`tables`)."""
