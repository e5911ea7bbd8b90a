"""a program that trains -> what it leaves behind when the machine under it fails."""
