# Completion of llmctl for fish:
#   llmctl completion fish > ~/.config/fish/completions/llmctl.fish

function __llmctl_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l program $before[1]
    set -e before[1]
    test (count $current) -eq 0; and set current ''
    set -l found ($program __complete fish $before $current 2>/dev/null)
    if test $status -eq 10
        __fish_complete_path $current
        return
    end
    test (count $found) -gt 0; and printf '%s\n' $found
end

complete -c llmctl -f -a '(__llmctl_complete)'
