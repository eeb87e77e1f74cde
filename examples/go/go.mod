module example.com/tokentape-follow

go 1.23
